export { type CommandExecutorOptions, createCommandExecutor } from "./command-executor.js";
export { type CommandTransportOptions, connectCommand } from "./command-transport.js";
export { type AnswerFileOptions, answerWorkFile, type RequestFile, type ResultFile } from "./work-file.js";
