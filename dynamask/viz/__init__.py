"""Pictures and figures of predictions: arrays in, arrays or plotly figures out."""
