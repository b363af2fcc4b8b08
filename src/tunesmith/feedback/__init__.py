"""What people think of a model's answers: gathered in a page, kept, measured and handed on."""
