"""Choose the queries and the gallery of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..data.labels import split_of
from ..data.summary import Use, report_pictures, report_reading
from ..datasets import HOLDOUT_RULE, DataSet, open_dataset, open_pictures, split_by_rule, with_val
from ..errors import EvaluationError
from ..text import display_path

__all__ = ["open_queries_and_gallery", "open_split"]


def open_split(
    data: str, split: str | None, labels: str | None, say: Callable[[str], None], *, rule: int = HOLDOUT_RULE
) -> DataSet:
    """Return a data set whose val pictures are the queries and whose train pictures the gallery.

    The queries are the pictures of the split, the gallery those of train. If a label table has
    OML's ``is_query`` and ``is_gallery``, its marks decide instead.

    Args:
        data: see :func:`~..datasets.open_dataset`.
        split: ``val``, the default, or ``test``.
        labels: see :func:`~..datasets.open_dataset`.
        say: receives messages about how the data was read.
        rule: version of the holdout rule, see :func:`~..datasets.holdout`.

    Raises:
        DataError: the data cannot be read.
        EvaluationError: there are no such queries, or there is no gallery.

    """
    dataset = with_val(split_by_rule(open_dataset(data, labels=labels), rule))
    use: Use = "test" if split is not None and split_of(split) == "test" else "val"
    report_reading(dataset, say, use=use)
    chosen = dataset.test if use == "test" else dataset.val
    if dataset.queries or dataset.gallery:
        return _marked(dataset, data, use)
    if use == "test":
        unlabelled = dataset.reading.unlabelled.get("test", 0)
        if not chosen:
            found = f"{unlabelled:,} test pictures without labels" if unlabelled else "no test pictures"
            raise EvaluationError(f"{display_path(data)} holds {found}; expected a test split, or leave --split out.")
        # The held-out pictures belong to the makers' train split.
        return replace(dataset, val=chosen, train=dataset.unsplit or dataset.train)
    if not chosen:
        raise EvaluationError(
            "There are no val pictures to query with; expected a val split, or a class of two pictures, of which one "
            "is held out."
        )
    return dataset


def _marked(dataset: DataSet, data: str, use: Use) -> DataSet:
    chosen = dataset.test if use == "test" else dataset.val
    queries = tuple(sample for sample in chosen if sample.path in dataset.queries)
    gallery = tuple(sample for sample in (*dataset.train, *chosen) if sample.path in dataset.gallery)
    if not queries or not gallery:
        raise EvaluationError(
            f"{display_path(data)} marks {len(queries):,} {use} pictures as queries (is_query) and {len(gallery):,} as "
            "gallery (is_gallery); expected both."
        )
    return replace(dataset, val=queries, train=gallery)


def open_queries_and_gallery(queries: str, gallery: str, labels: str | None, say: Callable[[str], None]) -> DataSet:
    """Return all pictures of two data sets as queries and gallery, as :func:`open_split` does."""
    both = open_pictures(queries, labels=labels), open_pictures(gallery, labels=labels)
    dataset = DataSet(both[0].name, both[1].train, both[0].train, {**both[1].names, **both[0].names})
    report_pictures(*both, dataset, say)
    return dataset
