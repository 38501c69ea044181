"""From the losses of a micro-batch to the clipped sum, every use of a parameter as planned."""
