"""The profile a device makes of its texts for clustering, and the message it travels in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray

from clients.learning.profile import Profile, ProfileError, ProfileSettings
from clients.learning.profile_making import make_profile, token_sketch
from fedhlm_app.settings import Settings

if TYPE_CHECKING:
    from fedhlm_app.client.device import Device

PROFILE = "profile"
"""Name of the record, and of the one array in it, that carry a profile."""

_CONFIG, _RELEASE = "config", "profile-release"
_ROWS_STREAM, _NOISE_STREAM = 17, 19
# A .npy header; what is longer than this beyond the floats themselves is no profile.
_HEADER_ROOM = 1024


def learns_clusters(settings: Settings) -> bool:
    """Whether clusters are learned from profiles."""
    return settings.cluster_by in ("classifier", "profile")


def profile_settings(settings: Settings) -> ProfileSettings:
    """What server and clients of a run agree on about profiles."""
    return ProfileSettings(
        rows=settings.profile_rows,
        noise_multiplier=settings.profile_noise,
        delta=settings.privacy_delta,
        seed=settings.seed,
    )


def request(release: int) -> RecordDict:
    """Content of a query for a profile; `release` (>= 0) picks the texts it is made of."""
    return RecordDict({_CONFIG: ConfigRecord({_RELEASE: release})})


def requested(message: Message) -> int | None:
    """The release a query asks for; None where it asks for no profile."""
    value = message.content.config_records.get(_CONFIG, ConfigRecord()).get(_RELEASE)
    return value if isinstance(value, int) else None


def introduce(message: Message, context: Context) -> Message:
    """Tell the server which data partition this node is and, where asked, its profile."""
    metrics = MetricRecord({"client": int(cast(int, context.node_config["partition-id"]))})
    content = RecordDict({"metrics": metrics})
    release = requested(message)
    if release is not None:
        from fedhlm_app.client import rounds  # and PyTorch, which a number alone does not need

        settings, client = rounds.opened(context)
        if rounds.FEEDBACK_STORE in context.node_config:
            raise ValueError(
                f"cluster-by = {settings.cluster_by!r}: a device with feedback-store keeps no text "
                "to make a profile of; set cluster-by=round-robin or random"
            )
        content[PROFILE] = profile_record(rounds._device(settings, client, context.run_id), release)
    return Message(content, reply_to=message)


def device_profile(device: Device, release: int) -> Profile:
    """Profile of at most `profile-prompts` of a device's training texts.

    A text is read as a whole, up to the length the pair was trained on, and the small model's
    entropies are those of its distribution at each of its tokens. Texts are drawn by (seed, client,
    release): the same query gets the same profile, unless there is noise.

    Parameters
    ----------
    device : Device
    release : int
        Number of the clustering, >= 0; another one means other texts where there are more.

    Raises
    ------
    ProfileError
        When no training text has two tokens.
    """
    # PyTorch and the models come along with these, and the server needs neither.
    from clients.decoding.slm import read_texts
    from fedhlm_app.client.edge import token_embeddings
    from fedhlm_app.data.prompts import TEXT_TOKENS, prompts
    from hlm.uncertainty import entropy

    settings = device.settings
    names = [settings.seed, device.client, release]
    generator = np.random.default_rng([*names, _ROWS_STREAM])
    count = min(settings.profile_prompts, len(device.train_rows))
    rows = np.sort(generator.choice(device.train_rows, count, replace=False))
    context = int(getattr(device.model.config.get_text_config(), "max_position_embeddings", 1024))
    made = prompts(
        device.work.items,
        device.work.tokenizer,
        rows,
        "score",
        text_tokens=max(2, min(TEXT_TOKENS, context - 1)),
    )
    texts = [prompt.tokens for prompt in made if len(prompt.tokens) >= 2]
    if not texts:
        raise ProfileError(f"client {device.client}: no training text of at least two tokens")
    entropies = []
    # One text at a time: all logits of many would not fit with a vocabulary of 150,000.
    for text in texts:
        entropies.append(entropy(read_texts(device.model, [text])[0].logits).numpy())
    agreed = profile_settings(settings)
    # Whoever can draw the noise again can take it away, and the server knows the seed.
    noise = np.random.default_rng(None if agreed.noise_multiplier else [*names, _NOISE_STREAM])
    sketch = token_sketch(token_embeddings(device.model), agreed)
    return make_profile(texts, entropies, sketch, agreed, noise)


def profile_record(device: Device, release: int) -> ArrayRecord:
    """What leaves the device: one float32 array, `Profile.to_array`."""
    array = device_profile(device, release).to_array(profile_settings(device.settings))
    return ArrayRecord({PROFILE: Array(array)})


def received_array(content: RecordDict, agreed: ProfileSettings) -> NDArray[np.floating]:
    """The array of a reply, its length on the wire checked before it is decoded.

    Raises
    ------
    ProfileError
        When there is none, it is too long, or it cannot be decoded.
    """
    record = content.array_records.get(PROFILE)
    if record is None or PROFILE not in record:
        raise ProfileError("profile: missing; allowed: one array")
    array = record[PROFILE]
    most = 4 * agreed.length + _HEADER_ROOM
    if len(array.data) > most:
        raise ProfileError(f"profile: {len(array.data)} bytes; allowed: at most {most}")
    try:
        return array.numpy()
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ProfileError(f"profile: not readable ({error}); allowed: a float32 array") from error


def received_bytes(content: RecordDict) -> int:
    """Encoded length of the profile in a reply, 0 where there is none."""
    record = content.array_records.get(PROFILE)
    return 0 if record is None else sum(len(array.data) for array in record.values())
