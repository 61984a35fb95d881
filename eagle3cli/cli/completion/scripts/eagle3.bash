# Completion of eagle3 for bash: source this file, or run once: eagle3 --install-completion bash
_eagle3_completion() {
    local piece=${COMP_WORDS[COMP_CWORD]} line paths='' first=1
    COMPREPLY=()
    while IFS= read -r line; do
        if ((first)); then paths=$line first=0; else COMPREPLY+=("$line"); fi
    done < <(_EAGLE3_COMPLETE=bash _EAGLE3_LINE=${COMP_LINE:0:COMP_POINT} _EAGLE3_PIECE=$piece "${1/#\~/$HOME}" 2>/dev/null)
    case $piece in ['=:']) piece='' ;; esac
    if ((${#COMPREPLY[@]})); then
        while [[ $paths ]] && IFS= read -r line; do
            if [[ -d $line ]]; then COMPREPLY+=("$(printf %q "$line")/"); else COMPREPLY+=("$(printf %q "$line")"); fi
        done < <(if [[ $paths == folders ]]; then compgen -d -- "$piece"; else compgen -f -- "$piece"; fi)
    elif [[ $paths == files ]]; then
        compopt -o default 2>/dev/null
    elif [[ $paths == folders ]]; then
        compopt -o dirnames 2>/dev/null
    fi
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[=:./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

complete -F _eagle3_completion eagle3
