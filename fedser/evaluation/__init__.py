"""What a trained model is tested on, and what that comes to."""
