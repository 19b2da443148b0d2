"""The handbook's own tools: pages that are made of the code, and links that hold in the repository and on the site."""
