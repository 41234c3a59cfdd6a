"""What a trained model is worth: probabilities, figures, pictures and the report. Training lives in `train`."""
