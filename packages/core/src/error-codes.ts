/**
 * Every error code of Coppice, in one table. `docs/reference/errors.md` lists the same codes with the same
 * exit codes; a test compares the two in both directions.
 *
 * `exit` is the exit code of the command line: 1 failed, 2 usage, 3 plugin missing, 4 bad model file,
 * 5 backend unavailable, 130 interrupted.
 */
export const errorCodes = {
  COPPICE_USAGE: { exit: 2, meaning: "An option or argument is missing, unknown or out of range." },
  COPPICE_ABORTED: { exit: 130, meaning: "The caller's AbortSignal, or Ctrl-C, stopped the work." },
  COPPICE_INTERNAL: { exit: 1, meaning: "A state that should be impossible; please report it." },

  COPPICE_FORMAT_MISSING_FILE: { exit: 4, meaning: "A file that the checkpoint needs is not in its folder." },
  COPPICE_FORMAT_TRUNCATED: { exit: 4, meaning: "A file ends before the bytes that its header promises." },
  COPPICE_FORMAT_HEADER: { exit: 4, meaning: "A safetensors header is not what the format allows." },
  COPPICE_FORMAT_OFFSETS: {
    exit: 4,
    meaning: "Tensor offsets overlap, leave holes or point outside the file.",
  },
  COPPICE_FORMAT_SHAPE: {
    exit: 4,
    meaning: "A tensor's shape and byte count, or its shape and the config, disagree.",
  },
  COPPICE_FORMAT_DTYPE: { exit: 4, meaning: "A tensor has a dtype that this operation does not read." },
  COPPICE_FORMAT_PATH: { exit: 4, meaning: "An index or config names a file outside its folder." },
  COPPICE_FORMAT_PICKLE: {
    exit: 4,
    meaning: "The folder holds pickle files only; they can run code and are never read.",
  },
  COPPICE_FORMAT_CONFIG: {
    exit: 4,
    meaning: "config.json or another JSON file is missing keys or malformed.",
  },
  COPPICE_FORMAT_INDEX: { exit: 4, meaning: "model.safetensors.index.json disagrees with the shards." },
  COPPICE_FORMAT_LIMIT: { exit: 4, meaning: "A file exceeds one of the named limits of its parser." },
  COPPICE_FORMAT_MISSING_TENSOR: {
    exit: 4,
    meaning: "A tensor that the family needs is not in the checkpoint.",
  },
  COPPICE_FORMAT_EXPERTS: {
    exit: 4,
    meaning: "The experts found in a layer contradict its router, one another or the config.",
  },
  COPPICE_FORMAT_QUANTIZED: {
    exit: 4,
    meaning: "A quantized tensor lacks its scales, or has siblings that this release does not know.",
  },
  COPPICE_FORMAT_MTP: {
    exit: 4,
    meaning: "Layers for multi-token prediction contradict the config.",
  },
  COPPICE_FORMAT_NAN: { exit: 4, meaning: "A tensor holds NaN or infinite values." },
  COPPICE_FAMILY_UNKNOWN: {
    exit: 4,
    meaning: "No family description matches the config and tensor names.",
  },
  COPPICE_FAMILY_UNSUPPORTED: {
    exit: 4,
    meaning: "The family is known but uses a feature that this operation does not support.",
  },
  COPPICE_TOKENIZER: { exit: 4, meaning: "The tokenizer files are missing or malformed." },

  COPPICE_TASK_EMPTY: { exit: 2, meaning: "A task or text file holds no samples." },
  COPPICE_TASK_LINE: { exit: 2, meaning: "A line of a task file is malformed; the message has its number." },
  COPPICE_TASK_TOO_LONG: { exit: 2, meaning: "A sample has more tokens than the model's context." },
  COPPICE_TASK_METRIC: { exit: 2, meaning: "The metric does not fit the task's form." },
  COPPICE_TASK_OVERLAP: { exit: 2, meaning: "Search and holdout share samples." },

  COPPICE_PLAN_INVALID: { exit: 2, meaning: "A plan is malformed or does not fit the model's shape." },
  COPPICE_PLAN_KEEP: { exit: 2, meaning: "Fewer experts would be kept than the router selects (top-k)." },
  COPPICE_PLAN_MODEL: { exit: 2, meaning: "A plan was made for another model." },
  COPPICE_PLAN_GROUPS: {
    exit: 2,
    meaning: "The kept experts do not fit the groups that the router of the layer works with.",
  },
  COPPICE_PLAN_EXPORT: { exit: 2, meaning: "A plan cannot be written in the family's stock layout exactly." },
  COPPICE_PLAN_RECORD: {
    exit: 2,
    meaning: "The record of a plan in a written folder was given where the plan file is needed.",
  },

  COPPICE_ATTENTION_INVALID: {
    exit: 2,
    meaning: "An attention plan, or a mask made while a text runs, is malformed.",
  },
  COPPICE_ATTENTION_MODEL: {
    exit: 2,
    meaning: "An attention plan was made for another model, or for other numbers of layers or heads.",
  },
  COPPICE_ATTENTION_UNSUPPORTED: {
    exit: 2,
    meaning: "A layer's attention is of a kind that no attention plan limits.",
  },
  COPPICE_ATTENTION_BUDGET: {
    exit: 2,
    meaning: "No attention plan is as sparse as asked for: sinks and shortest windows alone are more.",
  },
  COPPICE_ATTENTION_LENGTH: {
    exit: 2,
    meaning: "Attention is wanted for a context longer than the model's positions.",
  },
  COPPICE_SOLVER_LIMIT: {
    exit: 1,
    meaning: "A program of choices is too large for the solver, or has no answer within its time.",
  },

  COPPICE_EXPORT_UNSUPPORTED: {
    exit: 2,
    meaning: "A model cannot be written in the wanted format, or for the wanted target.",
  },

  COPPICE_STATS_MODEL: { exit: 2, meaning: "A statistics file was made from another model." },
  COPPICE_STATS_FORMAT: { exit: 2, meaning: "A statistics file is malformed or of another version." },
  COPPICE_STATS_MISSING: { exit: 2, meaning: "A criterion needs statistics that were not collected." },

  COPPICE_PROFILE_FORMAT: { exit: 2, meaning: "A file of task profiles is malformed or of another version." },
  COPPICE_PROFILE_MODEL: {
    exit: 2,
    meaning: "Task profiles or a routing trace were made from another model.",
  },
  COPPICE_TRACE_FORMAT: { exit: 2, meaning: "A routing trace is malformed or of another version." },

  COPPICE_RUN_IDENTITY: { exit: 2, meaning: "The run folder belongs to another model, task or recipe." },
  COPPICE_RUN_JOURNAL: { exit: 2, meaning: "A run's journal is damaged before its last line." },
  COPPICE_RUN_FILE: { exit: 2, meaning: "A file that a run keeps of its own work is damaged." },
  COPPICE_RUN_LOCKED: { exit: 2, meaning: "Another process is working in this run folder." },

  COPPICE_IO_READ: { exit: 1, meaning: "The operating system refused or failed a read." },
  COPPICE_IO_WRITE: { exit: 1, meaning: "The operating system refused or failed a write." },
  COPPICE_IO_NO_SPACE: { exit: 2, meaning: "The disk has too little free space for the output." },
  COPPICE_IO_EXISTS: { exit: 2, meaning: "The output exists already and is not overwritten." },

  COPPICE_PLUGIN_NOT_FOUND: {
    exit: 3,
    meaning: "No plugin of this kind and name is registered or installed.",
  },
  COPPICE_PLUGIN_CONTRACT: { exit: 3, meaning: "A plugin was written for another contract version." },
  COPPICE_PLUGIN_INVALID: {
    exit: 3,
    meaning: "A package that claims to be a plugin exports none, or a broken one.",
  },
  COPPICE_PLUGIN_DUPLICATE: { exit: 2, meaning: "Two plugins of one kind have the same name." },
  COPPICE_PLUGIN_OPTIONS: { exit: 2, meaning: "A plugin's options are not what its schema allows." },

  COPPICE_BACKEND_UNAVAILABLE: { exit: 5, meaning: "A backend's native library or device is not available." },
  COPPICE_BACKEND_UNSUPPORTED: { exit: 5, meaning: "A backend cannot run this model, plan or request." },
  COPPICE_BACKEND_FAILED: { exit: 5, meaning: "A backend failed while it ran." },
  COPPICE_BACKEND_CRASHED: { exit: 5, meaning: "A worker process of a backend ended unexpectedly." },
  COPPICE_BACKEND_LOST: { exit: 5, meaning: "The device that a backend computes on was lost." },
  COPPICE_BACKEND_DISPOSED: { exit: 1, meaning: "A runner, cache or executor was used after its disposal." },
  COPPICE_EXECUTOR_UNREACHABLE: {
    exit: 5,
    meaning: "The queue, or the command, that leads to workers elsewhere cannot be reached.",
  },
  COPPICE_EXECUTOR_TIMEOUT: { exit: 5, meaning: "No worker elsewhere answered in time." },
  COPPICE_EXECUTOR_FOREIGN: {
    exit: 2,
    meaning: "Work was made for another model, other samples or another version than the worker has.",
  },
  COPPICE_EXECUTOR_FAILED: {
    exit: 5,
    meaning: "A command that evaluates elsewhere failed at every attempt.",
  },
  COPPICE_EXECUTOR_RESULT: { exit: 1, meaning: "A worker elsewhere returned no usable result." },

  COPPICE_VERIFY_DIFFERENT: {
    exit: 1,
    meaning:
      "Two checkpoints that should be equal give different logits, or one was written from another plan.",
  },
} as const satisfies Record<string, { exit: number; meaning: string }>;

export type ErrorCode = keyof typeof errorCodes;
