"""plyr: music on atproto. A FastAPI service that lives on steadypool."""
