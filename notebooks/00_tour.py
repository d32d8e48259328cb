# %% [markdown]
# # 00 · Tour
#
# **Goal**: see masks whose resolution was chosen per instance, and move the budget.
# **You need**: nothing but Python.
# **Running time**: seconds.

# %%
from dynamask import load
from dynamask.lessons import photograph

predictor = load("people")
prediction = predictor(photograph("astronaut"))
print(prediction.mask_size.tolist())

# %%
from dynamask.viz import charts, theme

theme.dress(charts.size_shares(prediction.mask_size))

# %% [markdown]
# ## Exercises
# 1. How many?

# %% tags=["solution"] jupyter={"source_hidden": true}
assert len(prediction) > 0

# %% [markdown]
# 2. How many?

# %% tags=["solution"] jupyter={"source_hidden": true}
assert len(prediction) > 0

# %% [markdown]
# ## Recap
# Masks.
