"""The tables."""

from backend.models.artist import Artist, DeveloperToken
from backend.models.base import Base
from backend.models.queue import QueueState
from backend.models.track import Album, Like, Track
from backend.models.upload import Upload, UploadStatus

__all__ = [
    "Album",
    "Artist",
    "Base",
    "DeveloperToken",
    "Like",
    "QueueState",
    "Track",
    "Upload",
    "UploadStatus",
]
