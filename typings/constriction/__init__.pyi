# What Hushtune uses of constriction 0.5, which brings no types.
from constriction import stream as stream
