"""Is a bundle the student that was trained?  What is asked, what is answered, and who is to blame."""
