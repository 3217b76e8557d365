"""The world model: pictures and actions in, the pictures that follow out."""
