module github.com/fluxir/fluxir

go 1.26
