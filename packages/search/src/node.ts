export { type JournalFile, maxJournalBytes, openJournalFile } from "./journal-file.js";
export { type RememberingExecutorOptions, rememberingExecutor } from "./remembering-executor.js";
export { type OpenRunFolderOptions, openRunFolder, type RunFolder } from "./run-folder.js";
export { type IdentityDifference, identityDifferences, type RunIdentity } from "./run-identity.js";
export { takeLock } from "./run-lock.js";
