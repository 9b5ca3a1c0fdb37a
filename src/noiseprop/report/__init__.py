"""Tables, pictures and pages about finished runs."""
