"""Limits that several checks of a result share."""

WRONG_MEAN, WRONG_SD = 0.3, 0.2  # errors of a mean, in posterior sd, and of an sd that are wrong
# error of a mean in sd, or doublings of an sd; error of a log density that may cause it, eq. (C1)
FAR = 1.0
RARE = 0.01  # chance that a test calls a right model wrong, and share of draws that are extreme
LEAST_EFFICIENCY = 0.05  # share of the draws: of 4000 they leave 200, a mean's error of 0.07 sd
