"""One file per technique that a recipe can stack."""
