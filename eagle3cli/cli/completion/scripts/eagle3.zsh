#compdef eagle3
# Completion of eagle3 for zsh: source this file, or run once: eagle3 --install-completion zsh
_eagle3() {
    local program=${${(Q)words[1]}/#\~/$HOME} line text ret=1
    local -a answer finished open
    answer=("${(@f)$(_EAGLE3_COMPLETE=zsh $program "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${(@)answer[2,-1]}"; do
        text=${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}
        if [[ ${line%%$'\t'*} == *[=:./] ]]; then open+=($text); else finished+=($text); fi
    done
    ((${#finished})) && _describe -V eagle3 finished && ret=0
    ((${#open})) && _describe -V eagle3 open -S '' && ret=0
    [[ $PREFIX == --*=* ]] && compset -P '*='
    case $answer[1] in
        files) _files && ret=0 ;;
        folders) _path_files -/ && ret=0 ;;
    esac
    return ret
}

if [[ $funcstack[1] == _eagle3 ]]; then
    _eagle3 "$@"
else
    (($+functions[compdef])) || { autoload -Uz compinit && compinit -i; }
    compdef _eagle3 eagle3
fi
