# Completion of eagle3 for fish: source this file, or run once: eagle3 --install-completion fish
function __eagle3_complete
    set -l tokens (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $tokens[1])
    set -e tokens[1]
    set -l answer (env _EAGLE3_COMPLETE=fish $program $tokens "$current" 2>/dev/null)
    set -l before (string match -r '^--[^=]*=' -- $current)
    set -l begun (string replace -r '^--[^=]*=' '' -- $current)
    for line in $answer[2..]
        printf '%s\n' $line
    end
    switch "$answer[1]"
        case files
            __fish_complete_path "$begun" | string replace -r -- '^' "$before"
        case folders
            __fish_complete_directories "$begun" | string replace -r -- '^' "$before"
    end
end

complete -c eagle3 -f -a '(__eagle3_complete)'
