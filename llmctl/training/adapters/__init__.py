"""What trains and what stays as it is: LoRA and freezing."""
