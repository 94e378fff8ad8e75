-- One row per execution. Columns after `created_at` are for the writer: the parts from which the row is derived.
-- JSON is `json`, not `jsonb`: it keeps what a step printed exactly, and jsonb refuses NUL in strings.
CREATE TABLE executions (
    id              uuid PRIMARY KEY,
    name            text,
    namespace       text,
    trigger_source  text,
    status          text NOT NULL,
    steps_completed integer NOT NULL,
    total_steps     integer NOT NULL,
    current_step    text,
    input_context   json,
    outputs         json,
    error           text,
    started_at      timestamptz,
    completed_at    timestamptz,
    created_at      timestamptz,    -- NULL while the start has not been read: such rows are not listed
    workflow_steps  json,           -- name and type of each declared step
    failed_step     text,
    start_seq       bigint,
    end_seq         bigint,
    last_seq        bigint NOT NULL
) WITH (fillfactor = 70);           -- a row changes a few times in a short life

CREATE INDEX executions_newest ON executions (created_at DESC, id DESC);
CREATE INDEX executions_by_status ON executions (status, created_at DESC, id DESC);
CREATE INDEX executions_by_name ON executions (name, created_at DESC, id DESC);

-- One row per attempt at a step.
CREATE TABLE steps (
    execution_id uuid NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
    name         text NOT NULL,
    attempt      integer NOT NULL,
    position     integer,           -- place in the workflow, from 0
    type         text,
    status       text NOT NULL,
    started_at   timestamptz,
    completed_at timestamptz,
    output       json,
    error        text,
    message      text,
    dispatched   json,              -- parts, for the writer
    recorded     json,
    done         json,
    done_output  json,              -- the runner's output where `output` is the scheduler's
    PRIMARY KEY (execution_id, name, attempt)
) WITH (fillfactor = 80);

-- One row per delivery of an alert.
CREATE TABLE alerts (
    id              text COLLATE "C" PRIMARY KEY,   -- <identity>.<delivery>
    identity        text NOT NULL,
    delivery        text NOT NULL,
    delivery_seq    bigint NOT NULL,
    delivery_alerts bigint NOT NULL,
    source          text NOT NULL,
    fingerprint     text NOT NULL,
    name            text NOT NULL,
    status          text,
    labels          json NOT NULL,
    disposition     text NOT NULL,
    reason          text NOT NULL,
    executions      json NOT NULL,      -- ids
    received_at     timestamptz NOT NULL,
    seq             bigint NOT NULL
);

CREATE INDEX alerts_newest ON alerts (received_at DESC, id DESC);
CREATE INDEX alerts_by_identity ON alerts (identity);
CREATE INDEX alerts_by_delivery ON alerts (delivery_seq, received_at, delivery_alerts, disposition);

-- Counts of alerts that are no longer in `alerts`, so that the balance of all that ever came stays whole.
CREATE TABLE expired_alerts (
    kind  text PRIMARY KEY,             -- a disposition, or `messages`
    count bigint NOT NULL
);
