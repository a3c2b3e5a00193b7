"""Looking at a dataset in a browser, with what a world model makes of its episodes."""
