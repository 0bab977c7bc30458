"""What is trained between a frozen encoder and a frozen language model."""
