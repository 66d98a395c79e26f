"""The routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from notes.engine import engine, get_session, sessions
from notes.models import Base, Note, Tag

Session = Annotated[AsyncSession, Depends(get_session)]


class NoteIn(BaseModel):
    title: str
    body: str = ""
    tags: list[str] = []


class TagOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    title: str
    body: str
    views: int
    tags: list[TagOut]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(TimeoutError)
async def busy(_request: object, error: TimeoutError) -> StreamingResponse:
    return StreamingResponse(iter([str(error)]), status_code=503)


async def tags_named(session: AsyncSession, names: list[str]) -> list[Tag]:
    if names:
        values = [{"name": name} for name in names]
        await session.execute(insert(Tag).values(values).on_conflict_do_nothing())
    found = await session.scalars(select(Tag).where(Tag.name.in_(names)).order_by(Tag.name))
    return list(found)


async def note_or_404(session: AsyncSession, number: int) -> Note:
    note = await session.get(Note, number)
    if note is None:
        raise HTTPException(404, "no such note")
    return note


@app.post("/notes", status_code=201, response_model=NoteOut)
async def create(wanted: NoteIn, session: Session) -> Note:
    note = Note(title=wanted.title, body=wanted.body, tags=await tags_named(session, wanted.tags))
    session.add(note)
    try:
        await session.commit()
    except IntegrityError as error:
        await session.rollback()
        raise HTTPException(409, "there is a note of that title") from error
    return note


@app.get("/notes", response_model=list[NoteOut])
async def listing(session: Session, tag: str | None = None) -> list[Note]:
    query = select(Note).order_by(Note.id)
    if tag is not None:
        query = query.where(Note.tags.any(Tag.name == tag))
    return list(await session.scalars(query))


@app.get("/notes/export")
async def export() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with sessions() as session:
            async for title in await session.stream_scalars(select(Note.title).order_by(Note.id)):
                yield f"{title}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/notes/{number}", response_model=NoteOut)
async def read(number: int, session: Session) -> Note:
    await session.execute(update(Note).where(Note.id == number).values(views=Note.views + 1))
    await session.commit()
    return await note_or_404(session, number)


@app.put("/notes/{number}", response_model=NoteOut)
async def change(number: int, wanted: NoteIn, session: Session) -> Note:
    async with session.begin():
        note = await note_or_404(session, number)
        note.title, note.body = wanted.title, wanted.body
        note.tags = await tags_named(session, wanted.tags)
    return note


@app.delete("/notes/{number}", status_code=204)
async def delete(number: int, session: Session) -> None:
    await session.delete(await note_or_404(session, number))
    await session.commit()


@app.get("/pool")
async def pool() -> dict[str, int]:
    return {"size": engine.pool.size(), "out": engine.pool.checkedout()}
