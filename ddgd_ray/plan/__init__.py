"""From a sweep file to trials, stage calls with keys, and what they will cost. Pure: nothing is run or written."""
