"""Speed: a recipe of switches over an unedited agent, each with a reason and a test of equality."""
