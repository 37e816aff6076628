"""What a person looks at: figures of a run, and a page of them."""
