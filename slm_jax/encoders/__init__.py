"""Speech encoders and their pretraining heads."""
