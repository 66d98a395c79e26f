"""Artists, tokens, albums, tracks, likes, uploads, queues."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _created_at(name: str = "created_at") -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _did(*, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "did",
        sa.Text(),
        sa.ForeignKey("artists.did", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


def upgrade() -> None:
    _create_artists()
    _create_tracks()
    _create_activity()


def _create_artists() -> None:
    op.create_table(
        "artists",
        sa.Column("did", sa.Text(), primary_key=True),
        sa.Column("handle", sa.Text(), nullable=False, unique=True),
        sa.Column("display_name", sa.Text(), nullable=False),
        _created_at(),
    )
    op.create_table(
        "developer_tokens",
        sa.Column("token_hash", sa.LargeBinary(), primary_key=True),
        _did(),
        sa.Column("name", sa.Text(), nullable=False),
        _created_at(),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_developer_tokens_did", "developer_tokens", ["did"])


def _create_tracks() -> None:
    op.create_table(
        "albums",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _did(),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        _created_at(),
        sa.UniqueConstraint("did", "slug"),
    )
    op.create_table(
        "tracks",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        _did(),
        sa.Column("album_id", sa.Uuid(), sa.ForeignKey("albums.id", ondelete="SET NULL")),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("file_type", sa.Text(), nullable=False),
        sa.Column("duration", sa.Float()),
        sa.Column("visibility", sa.Text(), server_default="public", nullable=False),
        sa.Column("publishing", postgresql.JSONB(), nullable=False),
        sa.Column("play_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("atproto_record_uri", sa.Text(), nullable=False, unique=True),
        sa.Column("atproto_record_cid", sa.Text(), nullable=False),
        _created_at(),
    )
    op.create_index("ix_tracks_album_id", "tracks", ["album_id"])
    op.create_index("ix_tracks_file_id", "tracks", ["file_id"])
    op.create_index("ix_tracks_did_id", "tracks", ["did", sa.text("id DESC")])
    op.create_index("ix_tracks_visibility_id", "tracks", ["visibility", sa.text("id DESC")])


def _create_activity() -> None:
    op.create_table(
        "likes",
        sa.Column(
            "track_id",
            sa.BigInteger(),
            sa.ForeignKey("tracks.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        _did(primary_key=True),
        _created_at(),
    )
    op.create_index("ix_likes_did_created_at", "likes", ["did", sa.text("created_at DESC")])
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _did(),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("draft", postgresql.JSONB(), nullable=False),
        sa.Column("track_id", sa.BigInteger(), sa.ForeignKey("tracks.id", ondelete="SET NULL")),
        sa.Column("error", sa.Text()),
        _created_at(),
    )
    op.create_index("ix_uploads_did", "uploads", ["did"])
    op.create_index("ix_uploads_track_id", "uploads", ["track_id"])
    op.create_index(
        "ix_uploads_unfinished", "uploads", ["file_id"], postgresql_where=sa.text("status = 'processing'")
    )
    op.create_table(
        "queue_states",
        _did(primary_key=True),
        sa.Column("state", postgresql.JSONB(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        _created_at("updated_at"),
    )


def downgrade() -> None:
    for table in (
        "queue_states",
        "uploads",
        "likes",
        "tracks",
        "albums",
        "developer_tokens",
        "artists",
    ):
        op.drop_table(table)
