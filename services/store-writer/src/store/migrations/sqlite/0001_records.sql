-- One row per execution. Columns after `created_at` are for the writer: the parts from which the row is derived.
CREATE TABLE executions (
    id              TEXT PRIMARY KEY,
    name            TEXT,
    namespace       TEXT,
    trigger_source  TEXT,
    status          TEXT NOT NULL,
    steps_completed INTEGER NOT NULL,
    total_steps     INTEGER NOT NULL,
    current_step    TEXT,
    input_context   TEXT,           -- JSON
    outputs         TEXT,           -- JSON
    error           TEXT,
    started_at      TEXT,           -- RFC 3339, UTC, milliseconds
    completed_at    TEXT,
    created_at      TEXT,           -- NULL while the start has not been read: such rows are not listed
    workflow_steps  TEXT,           -- JSON: name and type of each declared step
    failed_step     TEXT,
    start_seq       INTEGER,
    end_seq         INTEGER,
    last_seq        INTEGER NOT NULL
) STRICT;

CREATE INDEX executions_newest ON executions (created_at DESC, id DESC);
CREATE INDEX executions_by_status ON executions (status, created_at DESC, id DESC);
CREATE INDEX executions_by_name ON executions (name, created_at DESC, id DESC);

-- One row per attempt at a step.
CREATE TABLE steps (
    execution_id TEXT NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    attempt      INTEGER NOT NULL,
    position     INTEGER,           -- place in the workflow, from 0
    type         TEXT,
    status       TEXT NOT NULL,
    started_at   TEXT,
    completed_at TEXT,
    output       TEXT,              -- JSON
    error        TEXT,
    message      TEXT,
    dispatched   TEXT,              -- JSON parts, for the writer
    recorded     TEXT,
    done         TEXT,
    done_output  TEXT,              -- JSON: the runner's output where `output` is the scheduler's
    PRIMARY KEY (execution_id, name, attempt)
) STRICT;

-- One row per delivery of an alert.
CREATE TABLE alerts (
    id              TEXT PRIMARY KEY,   -- <identity>.<delivery>
    identity        TEXT NOT NULL,
    delivery        TEXT NOT NULL,
    delivery_seq    INTEGER NOT NULL,
    delivery_alerts INTEGER NOT NULL,
    source          TEXT NOT NULL,
    fingerprint     TEXT NOT NULL,
    name            TEXT NOT NULL,
    status          TEXT,
    labels          TEXT NOT NULL,      -- JSON
    disposition     TEXT NOT NULL,
    reason          TEXT NOT NULL,
    executions      TEXT NOT NULL,      -- JSON: ids
    received_at     TEXT NOT NULL,
    seq             INTEGER NOT NULL
) STRICT;

CREATE INDEX alerts_newest ON alerts (received_at DESC, id DESC);
CREATE INDEX alerts_by_identity ON alerts (identity);
CREATE INDEX alerts_by_delivery ON alerts (delivery_seq, received_at, delivery_alerts, disposition);

-- Counts of alerts that are no longer in `alerts`, so that the balance of all that ever came stays whole.
CREATE TABLE expired_alerts (
    kind  TEXT PRIMARY KEY,             -- a disposition, or `messages`
    count INTEGER NOT NULL
) STRICT;
