"""The tabs beside Explore; each module has `build(context)`, called inside its tab."""
