"""Who is signed in, and signing in by a link."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from backend.api.answers import answers
from backend.api.deps import CurrentArtist, SignInCodesDep
from backend.api.schemas import MeOut
from backend.services.sign_in import create_token

router = APIRouter(prefix="/auth", tags=["auth"])


class CodeIn(BaseModel):
    """The code of a sign-in link."""

    code: Annotated[str, Field(min_length=1, max_length=100)]


class TokenOut(BaseModel):
    """A token to sign in with."""

    token: str


@router.get("/me", responses=answers(401))
async def me(artist: CurrentArtist) -> MeOut:
    return MeOut(did=artist.did, handle=artist.handle)


@router.post("/exchange", responses=answers(403))
async def exchange(given: CodeIn, codes: SignInCodesDep, response: Response) -> TokenOut:
    did = codes.take(given.code)
    if did is None:
        raise HTTPException(403, "this sign-in link was used already, or is too old")
    response.headers["Cache-Control"] = "no-store"
    return TokenOut(token=await create_token(did))
