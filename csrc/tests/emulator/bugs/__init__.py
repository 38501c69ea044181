"""All planted bugs, by what they are planted in."""

from bugs import conv, conv_write_out, layers, normalisation, sums

BUGS = [*conv.BUGS, *conv_write_out.BUGS, *layers.BUGS, *normalisation.BUGS, *sums.BUGS]
