"""What people look at: terminal, picture, page."""
