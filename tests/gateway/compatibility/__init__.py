"""What becomes of every field and route: tables of cases, a test that tries each, and the page made of them."""
