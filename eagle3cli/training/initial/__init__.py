"""Initial weights of a draft in closed form, from a sample of the states that it will train on."""
