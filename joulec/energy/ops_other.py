"""Work of signal, linear-algebra, text and classical machine-learning operators: best effort, sizes where known."""

from __future__ import annotations

import math

from joulec.energy.ops_elementwise import DIVIDE, ROOT
from joulec.energy.view import Cost, Unpriced, View, at


def dft(view: View) -> Cost:
    """DFT: 5 * N * log2(N) per transformed line (the count of a radix-2 FFT); `axis` names N."""
    dims = view.dims(0)
    axis = (view.integers(2) or [view.integer("axis", 1)])[0] if view.has(2) else view.integer("axis", 1)
    length = at(dims, axis)
    lines = math.prod(dims[:-1]) // max(length, 1) if dims else 1
    return view.cost(lines * _fft(length))


def _fft(length: int) -> int:
    return 5 * length * max(length - 1, 1).bit_length()


def stft(view: View) -> Cost:
    """STFT: one windowed FFT per frame; the output is (batch, frames, bins, 2)."""
    batch, frames, bins = (at(view.out_dims(), axis) for axis in (0, 1, 2))
    length = 2 * (bins - 1) if view.integer("onesided", 1) else bins
    return view.cost(batch * frames * (length + _fft(max(length, 1))))


def determinant(view: View) -> Cost:
    """Det, Inverse: Gaussian elimination, 2/3 * N^3 per matrix (2 * N^3 for the inverse)."""
    size = view.dim(0, -1)
    matrices = math.prod(view.dims(0)[:-2])
    return view.cost(matrices * (2 * size**3 if view.node.op_type == "Inverse" else (2 * size**3 + 2) // 3))


def multinomial(view: View) -> Cost:
    """Multinomial: a softmax over the classes (20 each) and a search of half of them per sample."""
    return view.cost(20 * view.n() + view.m() * view.dim(0, 1))


def per_character(view: View) -> Cost:
    """String operators and hashes: 16 operations per string (its length is not known before the run)."""
    return Cost({"int32": 16 * max(view.n(), view.m())})


def tf_idf(view: View) -> Cost:
    """TfIdfVectorizer: each element looked up for every n-gram length up to max_gram_length (10 per look-up)."""
    return Cost({"int32": 10 * view.n() * max(view.integer("max_gram_length", 1), 1)})


def linear_model(view: View) -> Cost:
    """LinearClassifier, LinearRegressor: rows times coefficients, 2 * rows * len(coefficients)."""
    return view.cost(2 * _rows(view) * len(view.attr("coefficients", ())))


def support_vectors(view: View) -> Cost:
    """SVMClassifier, SVMRegressor: a kernel of 2 * features + 16 per row and support vector."""
    features = max(view.dim(0, -1), 1)
    vectors = len(view.attr("support_vectors", ())) // features
    return view.cost(_rows(view) * vectors * (2 * features + 16))


def trees(view: View) -> Cost:
    """TreeEnsemble*: per row and tree, one path of log2(nodes per tree) comparisons (2 each), one add."""
    ids = view.attr("nodes_treeids", None)
    roots = len(set(ids)) if ids is not None else len(view.attr("tree_roots", ()))
    nodes = len(ids) if ids is not None else len(view.attr("nodes_featureids", ()))
    if not roots:
        raise Unpriced("the trees are not in its attributes")
    depth = max(nodes // roots, 1).bit_length()
    return view.cost(_rows(view) * roots * (2 * depth + 1))


def _rows(view: View) -> int:
    dims = view.dims(0)
    return dims[0] if len(dims) > 1 else 1


def scaler(view: View) -> Cost:
    """Scaler, Imputer, Binarizer, FeatureVectorizer, ...: 2 operations per element."""
    return view.cost(2 * max(view.n(), view.m()))


def normalizer(view: View) -> Cost:
    """Normalizer: a reduction (2 per element) and a division per element, a root per row."""
    return view.cost((2 + DIVIDE) * view.n() + ROOT * _rows(view))


def distance(view: View) -> Cost:
    """CDist: A (m, k), B (n, k): 3 operations per pair and feature, a root per pair."""
    return view.cost(view.m() * (3 * view.dim(0, -1) + ROOT))


TABLE = {
    "DFT": dft, "STFT": stft, "Det": determinant, "Multinomial": multinomial, "TfIdfVectorizer": tf_idf,
    **dict.fromkeys(["StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch"], per_character),
}  # fmt: skip
MICROSOFT = {
    "Inverse": determinant, "CDist": distance, "Tokenizer": per_character, "MurmurHash3": per_character,
}  # fmt: skip
ML = {
    **dict.fromkeys(["Scaler", "Imputer", "Binarizer", "FeatureVectorizer", "ArrayFeatureExtractor", "OneHotEncoder",
                     "ZipMap"], scaler),
    **dict.fromkeys(["LinearClassifier", "LinearRegressor"], linear_model),
    **dict.fromkeys(["SVMClassifier", "SVMRegressor"], support_vectors),
    **dict.fromkeys(["TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"], trees),
    **dict.fromkeys(["LabelEncoder", "CastMap", "CategoryMapper", "DictVectorizer"], per_character),
    "Normalizer": normalizer,
}  # fmt: skip
