"""Learning by trial: answers are made, judged by a reward, and made likelier or less likely."""
