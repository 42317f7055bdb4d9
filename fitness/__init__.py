"""How good a merged model is: items, responses, estimators."""
