"""What a run has learned, as a page and as pictures: made from what runs keep, without a framework."""
