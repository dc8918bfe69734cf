"""What each known defect of the paper's published code does to a number: costs, and choices among configurations."""
