"""A small service that keeps notes; stands for any application of SQLAlchemy with FastAPI."""
