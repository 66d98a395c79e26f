"""Who is signed in."""

from __future__ import annotations

from fastapi import APIRouter

from backend.api.deps import CurrentArtist
from backend.api.schemas import MeOut

router = APIRouter(prefix="/auth", tags=["auth"])


@router.get("/me")
async def me(artist: CurrentArtist) -> MeOut:
    return MeOut(did=artist.did, handle=artist.handle)
