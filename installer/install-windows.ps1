# UNTESTED: never run on Windows. Everything for a user who has only GIMP 3: Python through
# winget where it is missing, environment, command and plug-in.
#
#   powershell -ExecutionPolicy Bypass -File installer\install-windows.ps1
#   ... install-windows.ps1 -Uninstall          remove it all; the downloaded models stay
#   ... install-windows.ps1 -Uninstall -Purge   the models as well
param(
    [switch]$Uninstall,
    [switch]$Purge,
    [ValidateSet('auto', 'cpu', 'cuda')][string]$Torch = 'auto'
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version Latest

function Find-Python {
    # With 'Stop', Windows PowerShell 5.1 takes a program's words on stderr for a failure.
    $ErrorActionPreference = 'Continue'
    $test = 'import sys; sys.exit(sys.version_info < (3, 11))'
    foreach ($command in @(@('py', '-3'), @('python'), @('python3'))) {
        if (Get-Command $command[0] -ErrorAction SilentlyContinue) {
            $options = @($command | Select-Object -Skip 1)
            # Without a Python behind it, Windows' own `python` opens its store and fails.
            & $command[0] @options -c $test 2>$null
            if ($LASTEXITCODE -eq 0) { return , $command }
        }
    }
    return $null
}

$python = Find-Python
if ($null -eq $python -and (Get-Command winget -ErrorAction SilentlyContinue)) {
    Write-Host '[face-restore] installing Python 3.13 with winget'
    winget install --exact --id Python.Python.3.13 --scope user --silent
    $env:Path = [Environment]::GetEnvironmentVariable('Path', 'User') + ';' + $env:Path
    $python = Find-Python
}
if ($null -eq $python) {
    Write-Host '[face-restore] Python 3.11 or newer is needed: install it from python.org, run this again.'
    exit 2
}
$options = @($python | Select-Object -Skip 1)
$bootstrap = Join-Path $PSScriptRoot 'bootstrap.py'
$data = if ($env:FACE_RESTORE_HOME) { Join-Path $env:FACE_RESTORE_HOME 'data' }
        else { Join-Path $env:LOCALAPPDATA 'gimp-face-restore' }
$command = Join-Path $data 'bin\face-restore.cmd'

if ($Uninstall) {
    if (Test-Path $command) { & $command gimp uninstall }
    $more = if ($Purge) { @('--purge') } else { @() }
    & $python[0] @options $bootstrap uninstall @more
    exit $LASTEXITCODE
}
& $python[0] @options $bootstrap install --torch $Torch
# Status 3: something could be better or is missing; doctor has said what.
if ($LASTEXITCODE -notin 0, 3) { exit $LASTEXITCODE }
& $command gimp install
exit $LASTEXITCODE
