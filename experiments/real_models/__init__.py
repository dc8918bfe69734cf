"""What the scaling law says of real models' samples that others published: reading, pricing, choosing, drawing."""
