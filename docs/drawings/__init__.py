"""Pictures of the documentation that show an idea and no measurement."""
