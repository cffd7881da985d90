"""Cheap checks of what the page is built from, so that a mistake is an error in Python and not an empty page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.page.contract import FEATURE_INDEX_COLUMNS, VERSION, ComponentName, Head, Kind, Scale, Verdict, View


def check_head(head: Mapping[str, Any]) -> None:
    """Raise ValueError where the head is not what `contract.Head` says."""
    if head.get("version") != VERSION:
        raise ValueError(f"the page's head is of version {head.get('version')!r}; this viewer reads version {VERSION}")
    missing = [key for key in Head.__annotations__ if key not in head]
    if missing:
        raise ValueError(f"the page's head lacks {short_list(missing)}")
    check_choice("kind", head["kind"], get_args(Kind))
    check_choice("view", head["view"], get_args(View))
    if head["fidelity"] is not None:
        check_choice("fidelity.verdict", head["fidelity"]["verdict"], get_args(Verdict))
    for column in head["layout"]["columns"]:
        for component in column["components"]:
            check_choice("layout component", component["name"], get_args(ComponentName))
    if len(head["vocabulary"]) != len(head["token_ids"]):
        raise ValueError(f"vocabulary has {len(head['vocabulary'])} entries, token_ids {len(head['token_ids'])}")
    check_index(head["features"])
    if head["first"] not in head["features"]["id"]:
        raise ValueError(f"first is feature {head['first']}, which is not in the index")
    if head["view"] == "prompt":
        check_prompts(head)


def check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    if value not in known:
        hint = near_misses(str(value), known)
        raise ValueError(f"{what} is {value!r}; it can be {', '.join(map(repr, known))}.{hint}")


def check_index(index: Mapping[str, list[Any]]) -> None:
    """Raise ValueError unless the columns are there, of one length, and ids are distinct."""
    lengths = {name: len(index[name]) if name in index else None for name in FEATURE_INDEX_COLUMNS}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"the columns of the feature index must have one length, got {lengths}")
    if not index["id"]:
        raise ValueError("the page has no features")
    strange = [i for i in index["id"] if type(i) is not int or i < 0]
    if strange:
        raise ValueError(f"feature ids are whole numbers from 0 on, got {short_list(map(repr, strange))}")
    for measure in index["measures"]:
        check_choice(f"the scale of measure {measure['name']!r}", measure["scale"], get_args(Scale))
        if len(measure["values"]) != len(index["id"]):
            raise ValueError(f"measure {measure['name']!r} does not have one value for each feature")
    twice = [i for i, count in Counter(index["id"]).items() if count > 1]
    if twice:
        raise ValueError(f"feature ids occur more than once in the index: {short_list(twice)}")


def check_prompts(head: Mapping[str, Any]) -> None:
    """Raise ValueError unless a prompt view has prompts, scores for each position, and features that exist."""
    prompts = head["prompts"]
    if not prompts or not prompts["each"]:
        raise ValueError("a prompt view needs head['prompts']")
    known = set(head["features"]["id"])
    for prompt in prompts["each"]:
        check_choice("prompts.metric", prompts["metric"], tuple(prompt["scores"]))
        n_positions = len(prompt["tokens"])
        if not 0 <= prompt["position"] < n_positions:
            raise ValueError(f"prompt.position is {prompt['position']}, the prompt has {n_positions} tokens")
        for metric, scopes in prompt["scores"].items():
            if len(scopes) != len(prompts["scopes"]):
                raise ValueError(f"scores of {metric} cover {len(scopes)} scopes, not {len(prompts['scopes'])}")
            for positions in scopes:
                if len(positions) != n_positions:
                    raise ValueError(
                        f"scores of {metric} cover {len(positions)} positions, the prompt has {n_positions}"
                    )
        every = (positions for scopes in prompt["scores"].values() for positions in scopes)
        named = {pair[0] for positions in every for pairs in positions for pair in pairs}
        if named - known:
            raise ValueError(f"the scores name features that are not in the index: {short_list(sorted(named - known))}")


def check_features(
    head: Mapping[str, Any], features: Iterable[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Pass the features on one by one; raise ValueError at one that is unknown, double or broken, and, at the end, if
    any is missing."""
    awaited, known = set(head["features"]["id"]), set(head["features"]["id"])
    for number, feature in features:
        if number not in known:
            raise ValueError(f"feature {number} has a payload but is not in the index")
        if number not in awaited:
            raise ValueError(f"feature {number} has two payloads")
        awaited.discard(number)
        check_sequences(number, feature, len(head["vocabulary"]))
        yield number, feature
    if awaited:
        raise ValueError(f"features in the index without a payload: {short_list(sorted(awaited))}")


def check_sequences(number: int, feature: Mapping[str, Any], n_vocabulary: int) -> None:
    """Raise ValueError where a sequence's activations do not match its tokens, or a token is not in the vocabulary."""
    sequences = [sequence for group in feature["groups"] for sequence in group["sequences"]]
    sequences += feature["prompts"] or []
    for sequence in sequences:
        if len(sequence["t"]) != len(sequence["a"]):
            raise ValueError(
                f"feature {number}: a sequence has {len(sequence['t'])} tokens and {len(sequence['a'])} activations"
            )
        check_effects(number, sequence)
        if sequence["t"] and not 0 <= min(sequence["t"]) <= max(sequence["t"]) < n_vocabulary:
            raise ValueError(f"feature {number}: a sequence names a token outside the vocabulary of {n_vocabulary}")


def check_effects(number: int, sequence: Mapping[str, Any]) -> None:
    """Raise ValueError where a column of a sequence is not as long as its tokens: columns of a feature are joined."""
    n = len(sequence["t"])
    for effect in sequence["e"]:
        for name, column in effect.items():
            if len(column) != n:
                raise ValueError(f"feature {number}: {name} of a sequence of {n} tokens has {len(column)} entries")
        for side in ("up", "down"):
            if [*map(len, effect[side])] != [*map(len, effect[f"{side}_ids"])]:
                raise ValueError(f"feature {number}: {side} and {side}_ids of a sequence do not match")
    for shares in sequence.get("s", ()):
        if len(shares) != n:
            raise ValueError(f"feature {number}: source shares of a sequence of {n} tokens have {len(shares)} entries")
