"""Other people's evaluation harnesses: our models of every family, with their methods, behind the interfaces that those ask for."""
