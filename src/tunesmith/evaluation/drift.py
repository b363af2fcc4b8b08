"""How far the representations of texts have moved from one model to another.

Shape letters: R texts, D width, C width of the other model.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunesmith.evaluation.predictions import Floats, Indices

FOLDS = 5


def linear_cka(one_RD: Floats, other_RC: Floats) -> float:
    """Similarity of two sets of representations of the same texts, 1 where they agree up to a rotation and a scale.

    Linear centred kernel alignment, Kornblith et al. 2019 (arXiv 1905.00414), eq. 3. NaN where one side does not vary.
    """
    one_RD = one_RD.astype(float) - one_RD.mean(0, dtype=float)
    other_RC = other_RC.astype(float) - other_RC.mean(0, dtype=float)
    # By the smaller of the two products: of texts with texts, or of directions with directions.
    if len(one_RD) < max(one_RD.shape[1], other_RC.shape[1]):
        one_RR, other_RR = one_RD @ one_RD.T, other_RC @ other_RC.T
        shared, own = float((one_RR * other_RR).sum()), float(np.linalg.norm(one_RR) * np.linalg.norm(other_RR))
    else:
        shared = float(np.square(one_RD.T @ other_RC).sum())
        own = float(np.linalg.norm(one_RD.T @ one_RD) * np.linalg.norm(other_RC.T @ other_RC))
    return shared / own if own > 0 else float("nan")


def cosines(one_RD: Floats, other_RD: Floats) -> Floats:
    """(R,) cosine of each text's two representations; unlike CKA it sees a rotation."""
    one_RD, other_RD = one_RD.astype(float), other_RD.astype(float)
    norms = np.linalg.norm(one_RD, axis=1) * np.linalg.norm(other_RD, axis=1)
    return (one_RD * other_RD).sum(1) / np.maximum(norms, np.finfo(float).tiny)


def probe_classes(texts_RD: Floats, classes_R: Indices, seed: int = 0) -> Indices:
    """(R,) class of each text by a linear model on the other folds' representations; folds are drawn by the seed."""
    folds = StratifiedKFold(min(FOLDS, int(np.bincount(classes_R).min())), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    found: Indices = cross_val_predict(model, texts_RD, classes_R, cv=folds)
    return found
