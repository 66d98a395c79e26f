"""Who may find, hear and take a track: pure rules over what its artist decided."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class PublishingPolicy(BaseModel):
    """One decision for each of listening, downloading and being found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listening: Literal["public", "signed_in", "supporters", "owner", "space"] = "public"
    downloads: Literal["open", "ask", "supporters", "off"] = "open"
    visibility: Literal["public", "unlisted", "private"] = "public"


class Publishing(BaseModel):
    """The complete decision for one track."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access: PublishingPolicy = PublishingPolicy()
    attach_rights: bool = False


def may_see(policy: PublishingPolicy, owner: str, viewer: str | None) -> bool:
    """Whether the track exists at all for this viewer (a DID, or None for nobody)."""
    return policy.visibility != "private" or viewer == owner


def may_listen(policy: PublishingPolicy, owner: str, viewer: str | None) -> bool:
    """Whether the viewer may hear it. There are no supporters or spaces here yet: those mean the owner alone."""
    if viewer == owner:
        return True
    if not may_see(policy, owner, viewer):
        return False
    return policy.listening == "public" or (policy.listening == "signed_in" and viewer is not None)


def may_download(policy: PublishingPolicy, owner: str, viewer: str | None) -> bool:
    """Whether the viewer may take the file; who may not hear it may not take it either."""
    return viewer == owner or (policy.downloads == "open" and may_listen(policy, owner, viewer))
