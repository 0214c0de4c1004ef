"""The package behind the notebooks: data, model, training, prediction."""
